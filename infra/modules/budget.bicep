// A budget for the resource group. It tells; it stops nothing.
@description('Makes names unique.')
param token string

@description('What a month may cost, in the currency of the subscription.')
@minValue(1)
param amount int

@description('First day of a month, as 2026-12-01. Azure refuses to change it later.')
param startDate string

@description('Action group that is told.')
param actionGroupId string

@description('Addresses that are told.')
param emails array

resource budget 'Microsoft.Consumption/budgets@2023-11-01' = {
  name: 'dropforge-${token}'
  properties: {
    category: 'Cost'
    amount: amount
    timeGrain: 'Monthly'
    timePeriod: { startDate: startDate }
    notifications: {
      mostIsSpent: {
        enabled: true
        operator: 'GreaterThanOrEqualTo'
        threshold: 80
        thresholdType: 'Actual'
        contactEmails: emails
        contactGroups: [actionGroupId]
      }
      allWillBeSpent: {
        enabled: true
        operator: 'GreaterThanOrEqualTo'
        threshold: 100
        thresholdType: 'Forecasted'
        contactEmails: emails
        contactGroups: [actionGroupId]
      }
    }
  }
}
